/*
 * layers.c - reading "0,8,20" and "0-3,29".
 */
#include "layers.h"

#include <ctype.h>
#include <stdlib.h>

#include "cli.h"

/* A number of digits only at *at, which moves behind it; -1: there is none. */
static long take_number(const char **at)
{
    char *end = NULL;
    const long number = isdigit((unsigned char)**at) ? strtol(*at, &end, 10) : -1;
    *at = end ? end : *at;
    return number;
}

/* "3" or "3-7" at *at; marks them. 0: malformed. */
static int take_range(unsigned char *wanted, int layers, const char **at, long *largest)
{
    const long first = take_number(at);
    long last = first;
    if (first >= 0 && **at == '-') {
        ++*at;
        last = take_number(at);
    }
    if (first < 0 || last < first) return 0;
    *largest = last > *largest ? last : *largest;
    for (long layer = first; layer <= last && layer < layers; layer++) wanted[layer] = 1;
    return 1;
}

int layers_read(unsigned char *wanted, int layers, const char *list, long *largest)
{
    int fits = 1;
    *largest = 0;
    for (const char *at = list; fits; at++) {
        fits = take_range(wanted, layers, &at, largest) && (*at == ',' || *at == '\0');
        if (*at == '\0') break;
    }
    return fits ? CLI_OK : cli_refuse("--layers: '%s' is not a list of layers such as 0,8,20 or 0-3,29", list);
}
