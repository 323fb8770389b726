"""Calls from several Python threads at once, on one layer and on many: each is as if it were alone."""

import threading

import pytest
import torch

import operands
from nmlearn.packed.kernels import calls

THREADS, CALLS = 8, 30


@pytest.mark.parametrize("most", [4096, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_as_if_alone(shared: bool, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_CALLS", {})
    monkeypatch.setattr(calls, "_MOST_CALLS", most)  # known calls are forgotten while others look them up
    made = [
        operands.linear("2:4", "rows", residual=False),
        operands.linear("1:4", "tokens", size=(70,), residual=False),
        operands.conv("2:4", "rows", padding=(1, 1), residual=False),
        operands.conv("2:4", "tokens", residual=False, first=True),
    ]
    expected = [call.plain(torch.float64).float() for call in made]
    start, wrong = threading.Barrier(THREADS), []

    def work(number: int) -> None:
        start.wait()
        for i in range(CALLS):
            place = (i if shared else i + number) % len(made)
            x = made[place].x[: 1 + (i // 4 + number) % 2]
            try:
                torch.testing.assert_close(made[place].layer(x), expected[place][: len(x)], rtol=1e-4, atol=1e-4)
            except Exception as error:  # reported by the test
                wrong.append((number, i, error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
