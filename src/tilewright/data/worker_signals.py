"""Signal handling in dataloader workers."""

import signal


def ignore_stop_signals(worker: int) -> None:
    """Makes a dataloader worker ignore SIGHUP, SIGINT, SIGUSR1 and the first SIGTERM.

    Terminals, SLURM and `timeout` send signals to all processes of a run. The training process
    then saves a checkpoint and ends its workers itself. It needs them until then. A second SIGTERM
    ends a worker. This also replaces handlers that a forked worker inherits.

    Args:
        worker: index of the worker. DataLoader passes it to its `worker_init_fn`.
    """

    def on_first_sigterm(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, on_first_sigterm)
    for name in ("SIGHUP", "SIGINT", "SIGUSR1"):  # Windows has only one of them
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
