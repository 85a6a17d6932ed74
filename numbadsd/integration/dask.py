"""Work on the workers of a running Dask cluster, which may be several machines.

Dask gives a task to another worker when the one that had it is lost; when it was lost with too many
(`distributed.scheduler.allowed-failures`, 3 by default) the task is given up.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence

from numbadsd.errors import NumbadsdError

_CONNECT_S, _WORKERS_S = 10, 30
_TIMEOUTS = (TimeoutError, asyncio.TimeoutError)  # one and the same from Python 3.11 on


class ClusterUnavailable(NumbadsdError):
    """A Dask cluster cannot be used, or was lost."""


class DaskExecutor:
    """Calls a function on a cluster, once for each task.

    Parameters
    ----------
    address : str
        Of the scheduler, as ``tcp://host:8786``.
    function : callable
        What workers call; they import it, so that numbadsd is installed there, too.
    give_up : callable
        Makes the result of a task from the reason why no worker could end it.
    """

    def __init__(self, address: str, function: Callable, give_up: Callable[[str], object]):
        self._address, self._function, self._give_up = address, function, give_up

    def run(self, tasks: Sequence) -> Iterator[tuple[int, object]]:
        """Yield (place of the task, result) as they end; closing it ends what has not begun."""
        with _connect(self._address) as client:
            from distributed import as_completed

            places = {
                # pure=False: a measurement is made anew, whatever the cluster remembers
                client.submit(self._function, task, pure=False, priority=-i): i
                for i, task in enumerate(tasks)
            }
            try:
                for future in as_completed(places, loop=client.loop):
                    yield places[future], self._result(future)
            finally:
                client.cancel(list(places), force=True)

    def _result(self, future):
        if future.status == "finished":
            return future.result()
        if future.status == "error":
            error = future.exception()
            what = str(error).split(". ")[0]  # the rest names machines
            return self._give_up(" ".join(f"{type(error).__name__}: {what}".split()))
        what = "what had ended is kept, the same with --resume goes on"
        raise ClusterUnavailable(f"the Dask cluster was lost (work {future.status}); {what}")


def _connect(address: str):
    """Return a client; ClusterUnavailable, with the reason, when there are no workers to ask."""
    try:
        from distributed import Client
    except ImportError:
        install = "install it: pip install 'numbadsd[dask]'"
        raise ClusterUnavailable(f"--dask needs the package distributed; {install}") from None
    for name in ("distributed", "distributed.client"):  # what they log is said here in one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError, *_TIMEOUTS) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ClusterUnavailable(f"no Dask scheduler at {address}: {reason}") from None
    try:
        client.wait_for_workers(1, timeout=_WORKERS_S)
    except _TIMEOUTS:
        client.close()
        raise ClusterUnavailable(f"the Dask cluster at {address} has no workers") from None
    return client
