"""Wrong messages get typed answers, and leave a cluster that serves; `make fuzz` sends more."""

from pathlib import Path

from tests.e2e.cluster import running
from tests.fuzz.campaign import Campaign

CALLS = 400
SEED = 20
EXAMPLES = Path(__file__).parents[2] / "examples"


def test_wrong_messages_get_typed_answers(tmp_path: Path) -> None:
    with running(tmp_path, nodes=1, kv_mib=64) as cluster:
        campaign = Campaign(cluster, f"file://{EXAMPLES / 'tiny-llama'}", SEED)
        findings = campaign.run(range(CALLS))
    assert not findings.faults, "\n".join(findings.faults)
    assert findings.answers.total() == CALLS
