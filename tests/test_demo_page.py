"""The page of the demo in a browser: upload, enhance, play, switch, errors, stop, record; by mouse and by keyboard.

Needs gradio, playwright and an installed Chromium, and is skipped without one of them.
"""

import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SAMPLES, noise

from fastenh.demo.enhancement import Limits
from fastenh.demo.server import DemoError, serving

pytest.importorskip("gradio", reason="the demo's page is not tested: gradio is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="the demo's page is not tested: playwright is missing")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("the demo's page is not tested: Chromium is not installed", allow_module_level=True)

LIMITS = Limits(megabytes=10, minutes=3)
# Measures what reaches the loudspeakers: everything that is connected to them goes through an analyser as well.
LISTEN = """
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (node, ...rest) {
  if (node instanceof AudioDestinationNode) {
    this.context.heard ??= new AnalyserNode(this.context, { fftSize: 4096 });
    window.heard = this.context.heard;
    connect.call(this, window.heard);
  }
  return connect.call(this, node, ...rest);
};
window.level = () => {
  const samples = new Float32Array(4096);
  window.heard.getFloatTimeDomainData(samples);
  return 10 * Math.log10(samples.reduce((sum, x) => sum + x * x, 0) / 4096 + 1e-12);
};
"""


@pytest.fixture(scope="module")
def outside():
    """Addresses beyond this machine that the server, or anything else in this process, asked for."""
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        connect, resolve = socket.socket.connect, socket.getaddrinfo

        def watched_connect(self, address):
            if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
                asked.append(address)
            return connect(self, address)

        def watched_resolve(host, *arguments, **options):
            if host not in (None, "127.0.0.1", "localhost", "::1"):
                asked.append(host)
            return resolve(host, *arguments, **options)

        patch.setattr(socket.socket, "connect", watched_connect)
        patch.setattr(socket, "getaddrinfo", watched_resolve)
        yield asked


@pytest.fixture(scope="module")
def address(outside):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serving("127.0.0.1", port, LIMITS) as address:
        yield address


@pytest.fixture(scope="module")
def browser(address):
    with playwright.sync_playwright() as driver:
        options = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """The page, which must ask nobody else for anything and run without a fault of its scripts."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    requests, faults = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.set_default_timeout(40_000)
    page.add_init_script(LISTEN)
    page.goto(address)
    page.locator("#enhance").wait_for()
    yield page
    page.close()
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
    assert faults == []


def upload(page, path: Path) -> None:
    with page.expect_response(lambda response: "/upload" in response.url and response.request.method == "POST"):
        page.set_input_files("#recording input[type=file]", path)
    page.locator("#recording").get_by_label("Clear").wait_for()


def take_sample(page, name: str) -> None:
    page.get_by_role("button", name=name).click()
    page.locator("#clean").get_by_text(name).wait_for()


def enhance(page) -> None:
    page.get_by_role("button", name="Enhance").click()
    page.locator(".comparison audio").wait_for()


def alert(page) -> str:
    page.get_by_role("button", name="Enhance").click()
    return page.locator("#status [role=alert]").inner_text()


def moments(page) -> list[float]:
    """Where the player is, and what the clock says, in seconds."""
    return page.locator(".comparison audio").evaluate("player => [player.currentTime, performance.now() / 1000]")


def test_upload_enhance_play_and_switch(page, tmp_path):
    speech, rate = soundfile.read(SAMPLES / "english-pink.flac")
    recording = tmp_path / "talk.flac"
    soundfile.write(recording, np.concatenate([speech, noise(20 * rate, scale=0.03)]), rate)
    upload(page, recording)
    enhance(page)
    assert "talk.flac: 25.4 s of sound, enhanced in" in page.locator("#status").inner_text()
    player = page.locator(".comparison audio")
    page.wait_for_function("document.querySelector('.comparison audio').readyState >= 2")
    assert player.evaluate("player => player.duration") == pytest.approx(soundfile.info(recording).duration, abs=0.01)

    player.evaluate("player => { player.currentTime = 8; return player.play(); }")  # behind the speech
    page.wait_for_timeout(500)
    after, began = page.evaluate("level()"), moments(page)
    page.get_by_label("before", exact=True).check()
    page.wait_for_timeout(500)
    before, ended = page.evaluate("level()"), moments(page)
    assert before > -40
    assert after < before - 10
    assert ended[0] - began[0] == pytest.approx(ended[1] - began[1], abs=0.25)  # it went on where it was
    page.get_by_label("after", exact=True).check()
    page.wait_for_timeout(500)
    assert page.evaluate("level()") < before - 10

    with page.expect_download() as download:
        page.get_by_role("link", name="Download talk-enhanced.flac").click()
    enhanced = tmp_path / "enhanced.flac"
    download.value.save_as(enhanced)
    assert soundfile.info(enhanced).frames == soundfile.info(recording).frames
    assert page.locator(".pictures img").count() == 4
    assert page.locator(".pictures img").evaluate_all("all => all.every(image => image.naturalWidth > 500)")


def test_a_sample_by_keyboard_alone(page):
    def tab_to(name):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.innerText || document.activeElement.value") == name:
                return
        raise AssertionError(f"{name} cannot be reached by the keyboard")

    tab_to("french-hum")
    page.keyboard.press("Enter")
    page.locator("#clean").get_by_text("french-hum").wait_for()
    tab_to("Enhance")
    page.keyboard.press("Enter")
    page.locator(".comparison audio").wait_for()
    assert page.get_by_role("row", name="SI-SDR").get_by_text("dB").count() == 2
    tab_to("1")  # the switch
    page.keyboard.press("ArrowLeft")
    assert page.get_by_label("before", exact=True).is_checked()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('.comparison audio').currentTime > 0.1")


def test_the_attenuation_limit_is_kept(page):
    take_sample(page, "english-pink")
    page.get_by_label("6 dB").check()
    enhance(page)
    loudness = page.get_by_role("row", name="Loudness").locator("td").all_inner_texts()
    assert 0 <= float(loudness[0]) - float(loudness[1]) < 1
    scores = page.get_by_role("row", name="SI-SDR").locator("td").all_inner_texts()
    gain = float(scores[1].removesuffix(" dB")) - float(scores[0].removesuffix(" dB"))
    assert 2 < gain < 6.1  # noise that is turned down by 6 dB


def test_files_that_cannot_be_used_are_answered_in_words(page, tmp_path):
    assert alert(page) == "There is no recording yet: choose a file, record one, or take a sample."
    (tmp_path / "broken.wav").write_bytes(b"this is no sound" * 100)
    upload(page, tmp_path / "broken.wav")
    page.wait_for_timeout(300)
    page.get_by_role("button", name="Enhance").click()
    page.get_by_text("broken.wav: cannot be read as sound (Format not recognised)", exact=True).wait_for()
    page.locator("#recording").get_by_label("Clear").click()
    soundfile.write(tmp_path / "long.ogg", noise(181 * 8_000), 8_000)
    upload(page, tmp_path / "long.ogg")
    page.get_by_role("button", name="Enhance").click()
    page.get_by_text("long.ogg: longer than the 3 minutes that this demo takes", exact=True).wait_for()
    page.locator("#recording").get_by_label("Clear").click()
    (tmp_path / "large.wav").write_bytes(bytes(11 * 2**20))
    page.set_input_files("#recording input[type=file]", tmp_path / "large.wav")
    page.get_by_text("maximum allowed size of 10").first.wait_for()


def test_names_are_text_and_no_markup(page, tmp_path):
    path = tmp_path / "<img src=x> & 'ä'.wav"
    soundfile.write(path, np.stack([noise(8_000, seed) for seed in range(2)], 1), 44_100)
    upload(page, path)
    enhance(page)
    assert page.locator(".comparison img[src=x]").count() == 0
    assert page.get_by_role("link", name="enhanced.wav").count() == 1


def test_a_long_recording_shows_its_progress_and_can_be_stopped(page, tmp_path):
    soundfile.write(tmp_path / "long.flac", noise(170 * 16_000), 16_000)
    upload(page, tmp_path / "long.flac")
    page.get_by_label("dpt", exact=True).check()  # the slower one
    page.get_by_role("button", name="Enhance").click()
    page.get_by_text("of 2:50").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.", exact=True).wait_for()
    page.wait_for_timeout(1_000)
    assert page.locator("#status").inner_text() == "Stopped."
    assert page.locator(".comparison").count() == 0
    take_sample(page, "portuguese-pink")  # nothing is left in its way
    page.get_by_label("dpt_complex", exact=True).check()
    enhance(page)


def test_the_microphone(page):
    page.context.grant_permissions(["microphone"])
    page.locator("#recording").get_by_label("Record audio").click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(1_500)
    page.get_by_role("button", name="Stop", exact=True).first.click()
    page.locator("#recording").get_by_label("Clear").wait_for()
    enhance(page)
    page.wait_for_function("document.querySelector('.comparison audio').duration > 0.5")


@pytest.mark.parametrize("width", [320, 390])
def test_nothing_is_wider_than_a_telephone(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    take_sample(page, "spanish-clicks")
    enhance(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_nobody_else_was_asked_for_anything(page, outside, address):
    assert outside == []
    page.goto(address)
    violation = page.evaluate("""() => new Promise(resolve => {
        document.addEventListener('securitypolicyviolation', event => resolve(event.blockedURI));
        fetch('http://192.0.2.1/').catch(() => {});
    })""")
    assert violation == "http://192.0.2.1/"


def test_a_port_that_is_taken_is_said_in_words(address, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", os.environ["GRADIO_TEMP_DIR"])  # put back when this test ends
    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(DemoError, match=f"127.0.0.1:{port} cannot be used; --port takes another"):
        serving("127.0.0.1", port, LIMITS).__enter__()
