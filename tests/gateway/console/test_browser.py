"""What a person sees in a browser while things happen, and what comes of what he presses."""

import re

from playwright.async_api import Locator, expect
from serverlessllm.v1 import inference_service_pb2 as inference_pb

from tests.gateway.console.conftest import Scene
from tests.support import assert_eventually

MORE_THAN_ARE_WATCHED = 70
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


def card(scene: Scene, node: str) -> Locator:
    """A node's part of the page."""
    return scene.page.get_by_role("article", name=node)


async def test_a_cold_start_a_migration_and_a_drain_are_seen(scene: Scene) -> None:
    """One after the other, as they happen: each is held up until it has been seen."""
    for node in scene.nodes:
        node.script.before_ready.shut()
        node.script.before_migration.shut()
        node.script.amid_tokens.shut()
        node.script.tokens_before_gate = 2
    await scene.cluster.caller.deploy(max_replicas=2)
    await scene.goto("cluster")
    await expect(card(scene, "n1")).to_be_visible()
    await expect(card(scene, "n2")).to_contain_text("No instances")

    stream = await scene.cluster.caller.generate(max_tokens=40).until("loading")
    start = scene.page.get_by_role("progressbar", name="start")
    await expect(start).to_be_visible()
    await expect(scene.page.locator(".start")).to_contain_text(re.compile("reading .*MB from SSD"))
    for node in scene.nodes:
        node.script.before_ready.open()
    await stream.until("tokens")
    (instance,) = await scene.cluster.caller.instances()
    source = instance.node_id
    target = "n2" if source == "n1" else "n1"
    await expect(card(scene, source)).to_contain_text("1 running")
    await expect(start).to_have_count(0)
    events = scene.page.get_by_label("Events")
    await expect(events).to_contain_text(f"tiny starts on {source}")
    await expect(events).to_contain_text(
        re.compile(rf"tiny is ready on {source} after .*, from SSD")
    )

    await scene.page.get_by_title(instance.instance_id).click()
    await scene.page.get_by_role("button", name="Migrate…").click()
    await expect(scene.page.get_by_role("dialog")).to_contain_text("Its 1 request go on")
    await scene.page.get_by_label("To").select_option(target)
    await scene.page.get_by_role("button", name="Migrate", exact=True).click()
    await expect(scene.page.locator(".move")).to_contain_text(f"tiny{source}{target}1 left")
    (there,) = (node for node in scene.nodes if node.node_id == target)
    there.script.tokens_before_gate = 3  # the next one after the move
    for node in scene.nodes:
        node.script.before_migration.open()
    await expect(card(scene, target)).to_contain_text("1 running")
    await expect(card(scene, source)).to_contain_text("No instances")
    await expect(scene.page.locator(".move")).to_have_count(0)
    await expect(scene.page.locator(".toasts")).to_contain_text("1 request moved")

    await card(scene, target).get_by_role("button", name="Drain…").click()
    await scene.page.get_by_role("button", name="Cancel").click()
    assert not (await scene.cluster.caller.node(target)).draining
    await card(scene, target).get_by_role("button", name="Drain…").click()
    await scene.page.get_by_role("button", name="Drain", exact=True).click()
    await expect(card(scene, target)).to_contain_text("draining")
    there.script.amid_tokens.open()
    await stream.end()
    await expect(card(scene, target)).to_contain_text("No instances")
    await expect(scene.page.locator(".toasts")).to_contain_text("It runs nothing any more.")
    await card(scene, target).get_by_role("button", name="Undrain").click()
    await expect(card(scene, target).get_by_role("button", name="Drain…")).to_be_visible()


async def test_requests_and_reasons_are_shown(scene: Scene) -> None:
    await scene.cluster.caller.deploy()
    await scene.cluster.caller.complete()
    await scene.cluster.caller.complete()
    await scene.goto("deployments/tiny")
    row = scene.page.get_by_role("row", name=re.compile("^tiny available"))
    await expect(row.locator("circle")).to_have_count(2)
    await expect(scene.page.get_by_label("Placement")).to_contain_text("running instance")
    await expect(scene.page.get_by_label("Placement").locator("tbody tr")).to_have_count(2)
    await scene.page.get_by_role("row", name=re.compile("cold, SSD")).click()
    receipt = scene.page.get_by_label("Receipt")
    await expect(receipt).to_contain_text("Cold, from SSD")
    for phase in ("queued", "read SSD", "prefill", "first token"):
        await expect(receipt).to_contain_text(phase)


async def test_the_receipt_of_a_request_that_ended_before_is_found(scene: Scene) -> None:
    """The watch tells of the latest alone; the control plane is asked for any other, by its id."""
    await scene.cluster.caller.deploy(max_concurrency=64)
    await scene.cluster.caller.complete(request_id="early")
    for _ in range(MORE_THAN_ARE_WATCHED):
        await scene.cluster.caller.complete(max_tokens=1)
    await scene.goto("requests")
    receipt = scene.page.get_by_label("Receipt")
    await expect(receipt).to_contain_text("Warm")
    await scene.page.get_by_label("Id of a request").fill("early")
    await scene.page.get_by_role("button", name="Receipt").click()
    await expect(receipt).to_contain_text("tinyearly")
    await expect(receipt).to_contain_text("Cold, from SSD")
    await scene.goto("requests/never")
    await expect(receipt).to_contain_text("never")
    await expect(receipt).to_contain_text(re.compile("no receipt|not known|no request"))


async def test_adapters_are_shown_where_they_are_and_stay_adapters(scene: Scene) -> None:
    caller = scene.cluster.caller
    for node in scene.nodes:
        node.adapters["file:///models/legal"] = "L"
    await caller.deploy(min_replicas=1, max_adapters=2)
    await caller.deploy("legal", "file:///models/legal", base="tiny", keep_alive=600.0)
    await caller.complete("legal")
    (instance,) = await caller.instances()
    await scene.goto("deployments/tiny")
    row = scene.page.get_by_role("row", name=re.compile("^legal"))
    await expect(row).to_contain_text("adapter of tiny")
    over = scene.page.get_by_label("Adapters", exact=True)
    await expect(over).to_contain_text(f"legal{instance.instance_id}")
    await scene.page.get_by_role("button", name="Change…").click()
    await scene.page.get_by_label("Requests at once").fill("3")
    await scene.page.get_by_role("button", name="Change", exact=True).click()
    await expect(scene.page.locator(".toasts")).to_contain_text("was changed")
    base = await caller.deployment("tiny")
    assert (base.engine.max_concurrency, base.engine.max_adapters) == (3, 2)

    await over.get_by_role("link", name="legal").click()
    await expect(scene.page.get_by_role("heading", name="legal", level=1)).to_be_visible()
    await scene.page.get_by_role("button", name="Change…").click()
    await expect(scene.page.get_by_role("dialog")).to_contain_text("An adapter over tiny")
    await scene.page.get_by_label("Keep alive").fill("30")
    await scene.page.get_by_role("button", name="Change", exact=True).click()

    async def changed() -> bool:
        return bool((await caller.deployment("legal")).scaling.keep_alive.seconds == 30)

    await assert_eventually(changed)
    assert (await caller.deployment("legal")).base == "tiny"


async def test_a_conversation_shows_its_cold_start(scene: Scene) -> None:
    """What is said is shown as it is, whatever it looks like."""
    for node in scene.nodes:
        node.script.before_ready.shut()
    await scene.cluster.caller.deploy()
    await scene.goto("playground/tiny")
    await scene.page.keyboard.press("/")
    await scene.page.keyboard.type(HOSTILE)
    await scene.page.keyboard.press("Enter")
    await expect(scene.page.locator(".cold")).to_contain_text("from SSD")
    for node in scene.nodes:
        node.script.before_ready.open()
    await expect(scene.page.locator(".turn").last).to_contain_text("0 1 2 3 4")
    await expect(scene.page.locator(".turn.user")).to_have_text(HOSTILE)
    await expect(scene.page).to_have_title("sllm")
    await scene.page.get_by_text("first token").first.click()
    await expect(scene.page.get_by_text("Cold, from SSD")).to_be_visible()

    for node in scene.nodes:
        node.script.before_tokens.shut()
    await scene.page.get_by_label("What to say").fill("again")
    await scene.page.keyboard.press("Enter")
    await scene.page.get_by_role("button", name="Stop").click()
    await assert_eventually(lambda: [one for node in scene.nodes for one in node.cancelled])
    await expect(scene.page.get_by_role("button", name="Send")).to_be_visible()


async def test_a_model_calls_a_tool(scene: Scene) -> None:
    """Somebody says what the tool has answered, and the conversation goes on with that."""
    call = inference_pb.ToolCallDelta(id="c1", name="weather", arguments='{"city": "Rome"}')
    for node in scene.nodes:
        node.call = call
    await scene.cluster.caller.deploy()
    await scene.goto("playground/tiny")
    await expect(scene.page.get_by_text("it has no chat template")).to_be_visible()
    await scene.page.get_by_role("checkbox").check()
    await scene.page.get_by_label("Tools").fill("[{")
    await scene.page.get_by_label("What to say").fill("Is it warm?")
    await scene.page.keyboard.press("Enter")
    await expect(scene.page.get_by_role("alert")).to_contain_text("not JSON")
    await scene.page.get_by_label("Tools").fill('[{"name": "weather", "parameters": {}}]')
    await scene.page.get_by_role("button", name="Send").click()
    await expect(scene.page.locator(".call")).to_contain_text('{"city": "Rome"}')
    await scene.page.get_by_label("Result of weather").fill("31 degrees")
    await scene.page.get_by_role("button", name="Send results").click()
    await expect(scene.page.locator(".turn")).to_have_count(3)
    await expect(scene.page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    asked = [
        one
        for node in scene.nodes
        for one in node.calls
        if isinstance(one, inference_pb.GenerateRequest)
    ]
    said = [(one.role, one.content, one.tool_call_id) for one in asked[-1].messages.messages]
    assert said[0] == ("user", "Is it warm?", "")
    assert said[-1] == ("tool", "31 degrees", "c1")
    assert [one.name for one in asked[-1].messages.tools] == ["weather"]


async def test_deployments_are_made_pinned_and_deleted(scene: Scene) -> None:
    await scene.goto("cluster")
    await scene.page.keyboard.press("n")
    await scene.page.get_by_label("Name").fill("Not a name")
    await scene.page.get_by_label("Source").fill("file:///models/tiny")
    await scene.page.get_by_role("button", name="Deploy", exact=True).click()
    await expect(scene.page.get_by_role("alert")).to_contain_text("Not a name")
    await scene.page.get_by_label("Name").fill("tiny")
    await scene.page.get_by_label("Replicas at most").fill("3")
    await scene.page.get_by_role("button", name="Deploy", exact=True).click()
    await expect(scene.page.get_by_role("heading", name="tiny", level=1)).to_be_visible()
    deployed = await scene.cluster.caller.deployment("tiny")
    assert deployed.scaling.max_replicas == 3

    await scene.page.get_by_role("button", name="Pin…").click()
    await scene.page.get_by_label("Node").select_option("n2")
    await scene.page.get_by_role("button", name="Pin", exact=True).click()
    await expect(scene.page.get_by_text("DRAM of n2", exact=True)).to_be_visible()
    await scene.page.get_by_role("button", name="Unpin").click()
    await expect(scene.page.get_by_text("DRAM of n2", exact=True)).to_have_count(0)

    await scene.page.get_by_role("button", name="Delete…").click()
    await scene.page.get_by_role("button", name="Delete", exact=True).click()
    await expect(scene.page.get_by_text("Nothing is deployed yet.")).to_be_visible()


async def test_it_fits_a_phone_and_comes_back(scene: Scene) -> None:
    """Nothing is wider than the screen; and a control plane that was away is found again."""
    await scene.cluster.caller.deploy()
    await scene.cluster.caller.complete()
    await scene.page.set_viewport_size({"width": 390, "height": 844})
    for place in ("cluster", "deployments/tiny", "requests", "playground/tiny"):
        await scene.goto(place)
        width = await scene.page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, place
    await scene.goto("cluster")
    await scene.cluster.restart_control()
    await scene.page.locator('[data-link="live"]').wait_for()
    await expect(card(scene, "n1")).to_be_visible()
