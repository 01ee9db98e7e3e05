"""Everything that can go wrong outside this package, as one tree.

    ProbingError
    ├── UsageError         the request cannot be met as it was put (also a ValueError)
    ├── DataInvalid        a dataset cannot be read, or a row of it is not what it must be
    ├── ModelInvalid       a model or its tokenizer cannot be loaded, or must not be trusted
    ├── LayerNotFound      a place in the model was not found, or is not what it seemed
    ├── EditRefused        an edit of a model cannot be proved: it was not made, or was undone
    ├── NotFinite          no number came out that is not NaN or infinite
    ├── SourceMismatch     two things that must belong together do not (other data, model, options)
    ├── FolderBusy         another process is writing in that folder
    ├── StoreCorrupt       a file that this package wrote is damaged
    ├── OutOfMemory        one sequence alone does not fit
    ├── WorkerLost         processes that compute for a run die again and again
    └── KernelUnavailable  the implementation asked for cannot run on this machine

A mistake in the arguments of a function is a plain ``ValueError`` or ``TypeError``. A message says what was expected,
what came, where it was and what to do. The command line turns any of these into one line on stderr; ``exit_status`` is
the status it leaves with (2: something the caller can mend in what was asked for, 1: anything else).
"""


class ProbingError(Exception):
    """The root of the tree; never raised itself."""

    exit_status = 2


class UsageError(ProbingError, ValueError):
    """The request contradicts itself or the data it is made of."""


class DataInvalid(ProbingError):
    """A dataset, or one row of it, cannot be used; names the file and the line."""


class ModelInvalid(ProbingError):
    """A model or tokenizer cannot be loaded, or loading it would not be safe or faithful."""


class LayerNotFound(ProbingError):
    """The model has no such place, or its structure was not understood."""


class EditRefused(ProbingError):
    """A write to the residual stream is not understood, or an edit did not remove what it should; names the module."""


class NotFinite(ProbingError):
    """Every number asked for came out NaN or infinite."""


class SourceMismatch(ProbingError):
    """Things that must belong together do not; names each difference."""


class FolderBusy(ProbingError):
    """Another process holds the output folder."""

    exit_status = 1


class StoreCorrupt(ProbingError):
    """A file written by this package is damaged."""

    exit_status = 1


class OutOfMemory(ProbingError):
    """A single sequence does not fit into the device's memory."""

    exit_status = 1


class WorkerLost(ProbingError):
    """Processes that compute for a run die again and again."""

    exit_status = 1


class KernelUnavailable(ProbingError):
    """A kernel was asked for by name and cannot run here; says why."""
