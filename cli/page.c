/*
 * page.c - head, style and end that all pages share, and their way into a file.
 *
 * Invariant: colours are variables with a value for light and one for dark, so that no element needs to know which it is.
 */
#include "page.h"

#include "cli.h"
#include "kna.h"

/* Longer than what compilers of C11 must take as one string, hence in parts. */
static const char *const common_style[] = {
    ":root{color-scheme:light dark;--paper:#fbfaf7;--ink:#1d1c1a;--soft:#6a665f;--line:#dcd8d0;--card:#fff}\n"
    "@media(prefers-color-scheme:dark){:root{--paper:#171614;--ink:#ece8e1;--soft:#a39d92;--line:#37342f;--card:#201e1b}}\n",
    "*{box-sizing:border-box}\nbody{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}\n"
    "main{max-width:60rem;margin:0 auto;padding:1.5rem 1rem 4rem}\n"
    "h1{font-size:1.5rem;line-height:1.25;margin:0 0 .5rem}\nh2{font-size:1.1rem;margin:2.2rem 0 .6rem}\n"
    "p{max-width:46rem;margin:.5rem 0}\n.soft{color:var(--soft);font-size:.92rem}\n",
    ".card{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.9rem 1rem;margin:0}\n"
    "svg{display:block;width:100%;height:auto}\nsvg text{fill:var(--ink);font:13px system-ui,sans-serif}\n"
    "svg .title{font-weight:600;font-size:14px}\nsvg .soft{fill:var(--soft);font-size:12px}\n",
    ".wide{overflow-x:auto}\ntable{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}\n"
    "th,td{text-align:right;padding:.3rem .5rem;border-bottom:1px solid var(--line);vertical-align:bottom}\n"
    "td{white-space:nowrap}td:first-child{text-align:left;white-space:normal}.detail td{color:var(--soft)}\n",
    NULL,
};

static void put_parts(FILE *page, const char *const *parts)
{
    for (; *parts; parts++) {
        fputs(*parts, page);
    }
}

void page_open(FILE *page, const char *title, const char *const *style)
{
    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>",
          page);
    page_text(page, title);
    fputs("</title>\n<style>\n", page);
    put_parts(page, common_style);
    put_parts(page, style);
    fputs("</style>\n</head>\n<body>\n<main>\n", page);
}

void page_close(FILE *page, const char *command)
{
    fprintf(page, "<p class=\"soft\">knnattn %s, %s</p>\n</main>\n</body>\n</html>\n", KNA_VERSION_STRING, command);
}

int page_write(const char *path, int (*put)(const void *result, FILE *page), const void *result)
{
    FILE *page = cli_output_open(path);
    if (!page || put(result, page) != CLI_OK) {
        return CLI_FAILED;
    }
    int code = cli_output_commit();
    if (code == CLI_OK) {
        fflush(stdout);
        fprintf(stderr, "kna: wrote %s\n", path);
    }
    return code;
}

void page_text(FILE *page, const char *text)
{
    for (; *text; text++) {
        switch (*text) {
        case '&':
            fputs("&amp;", page);
            break;
        case '<':
            fputs("&lt;", page);
            break;
        case '>':
            fputs("&gt;", page);
            break;
        case '"':
            fputs("&quot;", page);
            break;
        default:
            putc(*text, page);
        }
    }
}
