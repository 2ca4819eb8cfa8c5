"""How the console looks: the value of Django's `UNFOLD` setting. Data only; the menu is `console.menu`'s.

Settings import this file before the apps are loaded, so it may import no models."""

from typing import Any

from django.templatetags.static import static


def _static(path: str) -> Any:
    return lambda request: static(path)


SETTINGS: dict[str, Any] = {
    "SITE_TITLE": "Ratchet",
    "SITE_HEADER": "Ratchet",
    "SITE_SYMBOL": "settings_suggest",
    "SITE_URL": None,
    "SHOW_HISTORY": False,
    "SHOW_VIEW_ON_SITE": False,
    "BORDER_RADIUS": "6px",
    "STYLES": [_static("console/console.css")],
    "SCRIPTS": [_static("console/refresh.js")],
    "COLORS": {
        # Teal: apart from the red, orange and green that states use.
        "primary": {
            "50": "oklch(98.4% .014 180.7)",
            "100": "oklch(95.3% .051 180.8)",
            "200": "oklch(91% .096 180.4)",
            "300": "oklch(85.5% .138 181.1)",
            "400": "oklch(77.7% .152 181.9)",
            "500": "oklch(60% .118 184.7)",
            "600": "oklch(51.1% .096 186.4)",
            "700": "oklch(43.7% .078 188.2)",
            "800": "oklch(38.6% .063 188.4)",
            "900": "oklch(33.5% .053 190)",
            "950": "oklch(27.7% .046 192.5)",
        },
    },
    "SIDEBAR": {
        "show_search": False,
        "command_search": False,
        "show_all_applications": False,
        "navigation": "console.menu.navigation",
    },
}
