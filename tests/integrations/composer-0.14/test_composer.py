"""Runs the cases with this folder's release of Composer."""

import pytest

pytest.register_assert_rewrite("tests.integrations.composer_cases")

from tests.integrations.composer_cases import *  # noqa: E402, F403
