"""The command line: thin callers of the library. Imports torch only when a command needs it."""
