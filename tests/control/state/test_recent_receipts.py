"""Receipts of the requests that ended last."""

import pytest

from sllm import errors
from sllm.control.state.recent_receipts import RecentReceipts
from sllm.control.types.receipts import Receipt


def _receipt(seconds: float) -> Receipt:
    return Receipt(False, None, (), seconds, None, "n-1", "i-1")


def test_the_oldest_goes_first_and_the_last_is_found_without_a_name() -> None:
    receipts = RecentReceipts(kept=2)
    for number in range(3):
        receipts.add(f"r-{number}", "tiny", _receipt(number))
    assert receipts.find("").request_id == "r-2"
    assert receipts.find("r-1").receipt.time_to_first_token == 1
    with pytest.raises(errors.RequestNotFound, match="r-0"):
        receipts.find("r-0")


def test_an_id_that_is_used_again_has_its_newest_receipt() -> None:
    receipts = RecentReceipts(kept=2)
    for number, name in enumerate(("a", "b", "a", "c")):
        receipts.add(name, "tiny", _receipt(number))
    assert receipts.find("a").receipt.time_to_first_token == 2
    with pytest.raises(errors.RequestNotFound):
        receipts.find("b")


def test_a_request_without_a_token_leaves_none() -> None:
    receipts = RecentReceipts()
    receipts.add("r", "tiny", None)
    with pytest.raises(errors.RequestNotFound, match="of any request"):
        receipts.find("")
