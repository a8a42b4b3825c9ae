"""The console scripts."""

import warnings

# Pyramid 2 imports it, and a script under cron would have this said in a mail every minute.
warnings.filterwarnings('ignore', 'pkg_resources is deprecated as an API')
