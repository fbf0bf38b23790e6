"""Takes a picture of every page: light, dark and narrow.

Usage: screenshots.py TOLLGATE_BINARY DIRECTORY
"""

import base64
import os
import sys

from demo import PAGES, Server, chromium, look, seed, sign_in

SCREENS = [("", 1280, 720, "light"), ("-dark", 1280, 720, "dark"), ("-narrow", 375, 667, "light")]
MOST_BYTES = 900_000


def main(binary, directory):
    os.makedirs(directory, exist_ok=True)
    written = []
    with chromium() as driver:

        def take(name):
            for suffix, width, height, scheme in SCREENS:
                look(driver, width, height, scheme)
                driver.refresh()  # what the page's script does once it does for this screen
                picture = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "webp", "quality": 30})
                path = os.path.join(directory, f"{name}{suffix}.webp")
                with open(path, "wb") as file:
                    file.write(base64.b64decode(picture["data"]))
                written.append(path)

        with Server(binary) as empty:
            sign_in(driver, empty)
            take("first-steps")
        with Server(binary) as server:
            seed(server)
            driver.delete_all_cookies()
            driver.get(f"{server.base}/admin")
            take("sign-in")
            sign_in(driver, server)
            for name, path in PAGES.items():
                driver.get(server.base + path)
                take(name)
    size = sum(os.path.getsize(path) for path in written)
    print(f"{len(written)} pictures, {size} bytes")
    if size > MOST_BYTES:
        sys.exit(f"that is more than {MOST_BYTES}")


main(*sys.argv[1:])
