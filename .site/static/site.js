// From a folder, search results cannot show excerpts: a browser fetches nothing from file://.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
