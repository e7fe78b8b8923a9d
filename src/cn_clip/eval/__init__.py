"""Features, nearest neighbours, recall."""
