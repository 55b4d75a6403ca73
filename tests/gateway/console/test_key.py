"""A cluster that asks who is calling, and a page that is told what to show."""

from pathlib import Path

from playwright.async_api import expect

from tests.control.clusters import cluster_of
from tests.gateway.console.browser import browsing, console_of


async def test_a_key_is_asked_for_shown_and_kept_for_the_tab_alone(
    tmp_path: Path, browser: str
) -> None:
    async with cluster_of(tmp_path, auth=True) as cluster:
        secret = (tmp_path / "admin-key").read_text().strip()
        async with console_of(cluster.address) as url, browsing(browser) as page:
            await page.goto(f"{url}/#/cluster")
            field = page.get_by_label("Key", exact=True)
            for given in ("sllm_of_nobody", secret):
                await field.fill(given)
                await page.get_by_role("button", name="Show it").click()
            await page.locator('[data-link="live"]').wait_for()
            await expect(field).to_have_count(0)
            await page.reload()
            await page.locator('[data-link="live"]').wait_for()
            assert not await page.evaluate("localStorage.length + document.cookie.length")
