"""Incidents for somebody who was not there: as a page, as an archive."""
