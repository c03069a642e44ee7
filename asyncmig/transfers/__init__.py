"""Uploads and downloads of files, as every API generation needs them: content, temporary files, counts of rows."""
