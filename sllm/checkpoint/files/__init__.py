"""Files and memory as loading wants them: around the page cache, whole or not at all."""
