from __future__ import annotations

import signal
import threading

import pytest

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.interrupts import StoppedError, stoppable


def interrupted(*numbers: signal.Signals) -> None:
    """Hear the first signal at work and the others while cleaning up."""
    state = {"kept": 0}
    with stoppable(lambda: f"{state['kept']} kept"):
        try:
            signal.raise_signal(numbers[0])
        except PicoPoseError:
            pytest.fail("taken for bad input")
        finally:
            state["kept"] = 3
            for number in numbers[1:]:
                signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_an_error_with_the_shells_exit_code_and_what_holds_at_the_end(number):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match="3 kept") as stopped:
        interrupted(number)
    assert stopped.value.exit_code == 128 + number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_signal_while_it_ends_is_no_traceback():
    with pytest.raises(StoppedError):
        interrupted(signal.SIGTERM, signal.SIGINT)


def test_other_errors_pass_and_outside_the_main_thread_it_does_nothing():
    with pytest.raises(ValueError, match="mine"), stoppable(lambda: "kept"):
        raise ValueError("mine")
    done = []

    def work():
        with stoppable(lambda: "kept"):
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]
