"""One module a family: numbers only."""

from wkernels.gpu.configs.tables import ampere, blackwell, cdna, consumer, hopper

TABLES = {
    "ampere": ampere,
    "hopper": hopper,
    "blackwell": blackwell,
    "consumer": consumer,
    "cdna": cdna,
}
