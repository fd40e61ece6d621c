"""Every error a user can meet, and the exit code each one ends with.

    AirtuneError              1   base; never raised itself
    ├── RecipeError           3   a recipe, a setting or a flag is wrong          (ValueError)
    ├── DataError             4   training data is missing, malformed or empty    (ValueError)
    ├── ModelError            5   the model is unknown or cannot do what is asked (ValueError)
    ├── FleetError            6   a fleet, link, trace or probe file is wrong     (ValueError)
    ├── InfeasibleError       7   no choice satisfies the constraints             (ValueError)
    ├── CheckpointError       8   a checkpoint or records file is damaged         (ValueError)
    ├── RunExistsError        9   the run folder is already there                 (FileExistsError)
    ├── StorageError         10   the disk is full or a path cannot be written    (OSError)
    ├── MethodError          11   a method broke its contract                     (ValueError)
    ├── CodecError           12   a payload is damaged or lies about itself       (ValueError)
    ├── MissingExtraError    13   an optional dependency is not installed         (ImportError)
    ├── TrainingError        14   training cannot go on (no device gave a usable update)
    ├── DeploymentError      15   a server, an agent or a key is not set up as it must be (ValueError)
    ├── ConnectionFailedError 16  the other side cannot be reached, or its certificate is wrong
    ├── KeyRefusedError      17   the server does not know the device's key, or it was revoked
    ├── MismatchError        18   the two sides differ in version, recipe, model or identity
    └── IncompleteError      19   a study ended, but runs of it are missing
    RunInterruptedError     130   Ctrl-C; state was saved

A message says what was wrong with the actual value, what is allowed and what to do.
Exit code 2 is a command line that could not be read (typer's own).
"""


class AirtuneError(Exception):
    """Base of every error that airtune raises for a user to read."""

    exit_code = 1

    def as_document(self) -> dict[str, object]:
        """Return kind, message and exit code in plain values."""
        return {"kind": type(self).__name__, "message": str(self), "exit_code": self.exit_code}


class RecipeError(AirtuneError, ValueError):
    """A recipe, a setting or a flag is wrong; all faults found are in the message."""

    exit_code = 3


class DataError(AirtuneError, ValueError):
    """Training data is missing, malformed or leaves a device with nothing."""

    exit_code = 4


class ModelError(AirtuneError, ValueError):
    """The model family is unknown, or it cannot express what was asked of it."""

    exit_code = 5


class FleetError(AirtuneError, ValueError):
    """A fleet, a link, a trace or a probe file is wrong."""

    exit_code = 6


class InfeasibleError(AirtuneError, ValueError):
    """No choice satisfies the constraints; the message names the constraint and the device."""

    exit_code = 7


class CheckpointError(AirtuneError, ValueError):
    """A checkpoint or a records file is damaged or belongs to another run."""

    exit_code = 8


class RunExistsError(AirtuneError, FileExistsError):
    """The run folder is already there, or another process is at work in it."""

    exit_code = 9


class StorageError(AirtuneError, OSError):
    """The disk is full or a path cannot be written."""

    exit_code = 10


class MethodError(AirtuneError, ValueError):
    """A method, usually one from outside, broke the contract of methods."""

    exit_code = 11


class CodecError(AirtuneError, ValueError):
    """A payload is damaged, truncated, or declares what it does not hold."""

    exit_code = 12


class MissingExtraError(AirtuneError, ImportError):
    """An optional dependency is not installed; the message names the command to install it."""

    exit_code = 13


class TrainingError(AirtuneError):
    """Training cannot go on, for instance because no device returned a usable update."""

    exit_code = 14


class DeploymentError(AirtuneError, ValueError):
    """A server, an agent, a key or a certificate is not set up as it must be."""

    exit_code = 15


class ConnectionFailedError(AirtuneError, ConnectionError):
    """The other side cannot be reached, or proves itself with a wrong certificate."""

    exit_code = 16


class KeyRefusedError(AirtuneError, PermissionError):
    """The server does not know the device's key, or the key was revoked."""

    exit_code = 17


class MismatchError(AirtuneError, ValueError):
    """The two sides differ in version, protocol, recipe, model or identity."""

    exit_code = 18


class IncompleteError(AirtuneError):
    """A study ended, but a run of it failed or was refused; the others and the page are there."""

    exit_code = 19


class RunInterruptedError(AirtuneError):
    """The user pressed Ctrl-C; the state was saved and the message says how to resume."""

    exit_code = 130
