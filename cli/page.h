/*
 * page.h - pages that need nothing but themselves: no script, no font, no picture from elsewhere. They follow the reader's light or
 * dark setting and are readable on a phone.
 */
#ifndef KNA_CLI_PAGE_H
#define KNA_CLI_PAGE_H

#include <stdio.h>

/* page_open() - everything up to the content. `style`: further CSS in parts, ended by NULL. */
void page_open(FILE *page, const char *title, const char *const *style);

/* page_close() - a line naming the command, and the end. */
void page_close(FILE *page, const char *command);

/* page_text() - text that is not ours, valid UTF-8, so that none of it is taken for markup. */
void page_text(FILE *page, const char *text);

/* page_write() - the page that put(result, page) prints, in the file `path`, whole or not at all; a code of the command line. */
int page_write(const char *path, int (*put)(const void *result, FILE *page), const void *result);

#endif /* KNA_CLI_PAGE_H */
