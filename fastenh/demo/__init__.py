"""The demo: a page in the browser that takes a recording and lets one hear and see what enhancing it changes."""
