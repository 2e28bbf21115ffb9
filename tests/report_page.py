"""Opens a run's report.html in headless Chromium and uses it: tables, slices, switches, keyboard.

    python tests/report_page.py runs/demo/report.html [--screenshots FOLDER]

Needs Chromium with its driver (Debian: chromium, chromium-driver) and `pip install selenium==4.51.0`.
"""

import argparse
import shutil
import sys
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.support.ui import Select, WebDriverWait

MAX_BYTES = 30_000_000

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("page", type=Path)
parser.add_argument("--screenshots", type=Path, help="folder for pictures of the page")
arguments = parser.parse_args()
page = arguments.page.resolve()
assert page.stat().st_size < MAX_BYTES, f"{page.stat().st_size} bytes"
text = page.read_text()
for outside in ("http://", "https://", "url("):
    # Namespaces and links in an SVG's source are no requests.
    assert outside not in text.replace("http://www.w3.org/", ""), f"the page refers to {outside}"


def open_page(*options):
    settings = webdriver.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *options):
        settings.add_argument(option)
    settings.binary_location = shutil.which("chromium") or ""
    settings.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=settings, service=webdriver.ChromeService(shutil.which("chromedriver")))
    browser.get(page.as_uri())
    return browser


def screenshot(browser, name):
    if arguments.screenshots:
        arguments.screenshots.mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(arguments.screenshots / f"{name}.png"))


browser = open_page("--window-size=1200,1000")
wait = WebDriverWait(browser, 20)


def drawn():
    return browser.execute_script("return document.documentElement.dataset.drawn")


def canvas():
    return browser.execute_script("return document.getElementById('canvas').toDataURL()")


def element(name):
    return browser.find_element(By.ID, name)


def changes(value, act, what):
    before = value()
    act()
    try:
        wait.until(lambda _: value() != before)
    except Exception:
        sys.exit(f"{what}: nothing changed")


wait.until(lambda _: drawn())
assert browser.find_elements(By.CSS_SELECTOR, "#reference tbody tr"), "no scores"
assert browser.find_elements(By.CSS_SELECTOR, "#reference svg .box"), "no box plot"
plot = browser.find_element(By.CSS_SELECTOR, "#reference svg").get_attribute("aria-label")
assert "median" in plot, plot
for image in browser.find_elements(By.TAG_NAME, "img"):
    assert image.get_attribute("alt") and image.get_property("naturalWidth") > 0
screenshot(browser, "top")

picture = element("canvas")
browser.execute_script("document.getElementById('slices').scrollIntoView()")
changes(canvas, element("prediction").click, "the switch of the prediction")
changes(canvas, element("prediction").click, "the switch of the prediction")
changes(canvas, element("truth").click, "the switch of the ground truth")
changes(canvas, element("truth").click, "the switch of the ground truth")
changes(canvas, element("errors").click, "the switch of errors")
screenshot(browser, "errors")
changes(drawn, lambda: element("slice").send_keys(Keys.ARROW_RIGHT), "an arrow key on the slider")
picture.click()
browser.execute_script("document.getElementById('canvas').focus()")
changes(drawn, lambda: ActionChains(browser).send_keys(Keys.ARROW_UP).perform(), "an arrow key")
changes(canvas, lambda: ActionChains(browser).send_keys("e").perform(), "the key E")
wheel = lambda: ActionChains(browser).scroll_from_origin(ScrollOrigin.from_element(picture), 0, 100).perform()
changes(drawn, wheel, "the wheel")
ActionChains(browser).move_to_element(picture).perform()
assert "At the pointer" in element("pointer").text
assert "Prediction:" in element("status").text
cases = Select(element("case"))
if len(cases.options) > 1:
    changes(drawn, lambda: cases.select_by_index(1), "another case")
    first = browser.find_element(By.CSS_SELECTOR, "a[data-case='0']")
    changes(drawn, lambda: browser.execute_script("arguments[0].click()", first), "the link of a case")
log = [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
assert not log, log
browser.quit()

# Dark, and as narrow as a phone: nothing is wider than the screen.
for name, options in (
    ("dark", ["--window-size=1200,1000", "--force-dark-mode", "--blink-settings=preferredColorScheme=0"]),
    ("phone", ["--window-size=500,900"]),
):
    browser = open_page(*options)
    if name == "phone":
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True},
        )
    wait = WebDriverWait(browser, 20)
    wait.until(lambda _: browser.execute_script("return document.documentElement.dataset.drawn"))
    screenshot(browser, name)
    browser.execute_script("document.getElementById('slices').scrollIntoView()")
    screenshot(browser, f"{name}-slices")
    width = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert width <= 0, f"{name}: {width} pixels too wide"
    browser.quit()
print(f"{arguments.page}: opens, scrolls and switches")
