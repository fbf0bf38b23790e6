"""Runs axe-core over every page: narrow and wide, light and dark. Nothing serious or critical may be found.

Usage: axe.py TOLLGATE_BINARY AXE_SCRIPT
"""

import sys

from demo import PAGES, Server, chromium, look, seed, sign_in

SCREENS = [(1280, "light"), (1280, "dark"), (375, "light")]
RUN = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ['violations']}).then((found) => done(found.violations.map((it) => [
  it.impact, it.id, it.help, it.nodes.slice(0, 3).map((node) => node.html.slice(0, 160) + ' | ' + node.failureSummary)
])), (error) => done([['critical', 'axe', String(error), []]]));
"""


def main(binary, script):
    with open(script, encoding="utf-8") as file:
        axe = file.read()
    looked, failed = 0, False
    with chromium() as driver:

        def check(name):
            nonlocal looked, failed
            for width, scheme in SCREENS:
                look(driver, width, 900, scheme)
                driver.execute_script(axe)
                looked += 1
                for impact, rule, text, nodes in driver.execute_async_script(RUN):
                    is_bad = impact in ("serious", "critical")
                    failed = failed or is_bad
                    print(f"{'FAIL' if is_bad else 'note'} {name}, {width} px, {scheme}: {impact}: {rule}: {text}", *nodes, sep="\n    ")

        with Server(binary) as empty:
            sign_in(driver, empty)
            check("first-steps")
        with Server(binary) as server:
            seed(server)
            driver.delete_all_cookies()
            driver.get(f"{server.base}/admin")
            check("sign-in")
            sign_in(driver, server)
            for name, path in PAGES.items():
                driver.get(server.base + path)
                check(name)
            driver.get(f"{server.base}/admin/nothing")
            check("nothing-here")
    print(f"{looked} looks at {looked // len(SCREENS)} pages")
    sys.exit(1 if failed else 0)


main(*sys.argv[1:])
