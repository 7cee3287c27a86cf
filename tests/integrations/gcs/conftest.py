"""gcsfs reads this when it is imported. Else it asks an API that the emulator does not have."""

import os

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
