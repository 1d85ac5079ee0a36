"""Reports: what was asked, what came of it, how sure that is, and what to try next, on one page that works offline."""
