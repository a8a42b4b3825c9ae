"""The console scripts."""

import warnings

# Pyramid 2 imports pkg_resources: cron would mail this warning every minute.
warnings.filterwarnings('ignore', 'pkg_resources is deprecated as an API')
