"""Where pages live: the control API under /api/, the console at the root."""

from django.urls import path

from console.admin import site
from console.api.routes import api

urlpatterns = [path("api/", api.urls), path("", site.urls)]
