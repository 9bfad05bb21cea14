from __future__ import annotations

import io

from rich.console import Console

from picopose_cli.runs.progress import add_bar, progress_bar


def test_speed_and_time_left_count_from_where_this_run_began():
    clock = [100.0]
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    progress = progress_bar(console)
    progress.get_time = lambda: clock[0]
    bar = add_bar(progress, "images", 50, "images", begun=30)

    def shown() -> str:
        with console.capture() as capture:
            console.print(progress.get_renderable())
        return capture.get()

    assert "30/50" in shown()
    assert "- images/s" in shown()
    clock[0] += 20
    progress.update(bar, completed=40)
    assert "0.5 images/s, 0:00:20 left" in shown()
    clock[0] += 5
    progress.advance(bar, 10)
    assert "0.8 images/s, 0:00:00 left" in shown()
