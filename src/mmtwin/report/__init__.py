"""Reports: a recording as one self-contained HTML page. `data.document` gathers the numbers, `page.render` makes the page of them."""
