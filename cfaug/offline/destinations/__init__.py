"""Where shards go, and how they get there whole: storages, staging, and the commit to a directory or an object store."""
