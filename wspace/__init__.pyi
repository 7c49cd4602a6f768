from .catalogue import (
    Catalogue as Catalogue,
    index_zoo as index_zoo,
    open_catalogue as open_catalogue,
)
from .errors import (
    BudgetError as BudgetError,
    CheckpointError as CheckpointError,
    DeviceError as DeviceError,
    MisalignedZooError as MisalignedZooError,
    NonFiniteError as NonFiniteError,
    OutputError as OutputError,
    WeightsError as WeightsError,
    WspaceError as WspaceError,
)
from .geometry import (
    cosines as cosines,
    distances as distances,
    distances_to_centroid as distances_to_centroid,
    geometric_median as geometric_median,
    kmeans as kmeans,
    medoid as medoid,
    norms as norms,
    spectral_clustering as spectral_clustering,
)
from .grams import (
    Gram as Gram,
    Statistics as Statistics,
    gram as gram,
    pairwise_distances as pairwise_distances,
    refine as refine,
    statistics as statistics,
)
from .merging import merge as merge
from .mixing import (
    centroids as centroids,
    leave_group_out as leave_group_out,
    lerp as lerp,
    slerp as slerp,
    task_arithmetic as task_arithmetic,
    uniform as uniform,
)
from .modules import ResidentZoo as ResidentZoo, mix_into as mix_into
from .storage.checkpoints import Checkpoint as Checkpoint, open_checkpoint as open_checkpoint
from .storage.verifying import Verification as Verification, verify as verify
from .version import VERSION as VERSION
from .zoo import Zoo as Zoo, open_zoo as open_zoo
