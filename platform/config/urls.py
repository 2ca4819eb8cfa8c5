"""Where pages live: the dashboard at the root, the control API under /api/."""

from django.contrib import admin
from django.urls import path

urlpatterns = [path("", admin.site.urls)]
