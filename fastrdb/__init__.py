"""A caching toolkit for async SQLAlchemy."""
