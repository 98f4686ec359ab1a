"""The viewer's page, opened in a browser."""

import threading

import numpy as np

from ssgan.viewing.server import Server

DATA = "document.documentElement.dataset"
CANVAS, SECOND = "#first canvas", "#second canvas"
SMALL, WIDE, PHONE = (900, 560), (1280, 720), (390, 844)


class Pages:
    """Servers of sources, opened in the browser."""

    def __init__(self, browser):
        self.browser, self.servers = browser, []

    def open(self, source, size=SMALL):
        server = Server(source)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.servers.append(server)
        self.browser.resize(*size)
        self.browser.console()
        self.browser.open(server.address)
        self.browser.wait(f"{DATA}.ready || {DATA}.errors !== '0'")
        return server

    def close(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()


def change(browser, selector, value, *words):
    """Sets a control of a run, and waits for the volume whose query has all words."""
    browser.set(selector, value)
    for word in words:
        browser.wait(f"{DATA}.shown.includes('{word}')")


def different(a, b):
    """The share of pixels that differ visibly."""
    return float((np.abs(a - b).max(2) > 12).mean())


def orange(pixels):
    """Where the crosshair is drawn."""
    return (pixels[:, :, 0] > 180) & (pixels[:, :, 2] < 90) & (pixels[:, :, 0] - pixels[:, :, 1] > 80)
