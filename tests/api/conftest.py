"""The API's fixtures, for the tests of this directory."""

from tests.api.fixtures import api, people, whole_api

__all__ = ["api", "people", "whole_api"]
