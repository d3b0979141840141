/*
 * layers.h - lists of layers on a command line: "0,8,20" or "0-3,29".
 */
#ifndef KNA_CLI_LAYERS_H
#define KNA_CLI_LAYERS_H

/*
 * layers_read() - mark the layers of a list among wanted[0 .. layers - 1].
 *
 * Out:     *largest  the largest number in the list, which may be beyond the last layer: the caller knows what to say then.
 * Returns: CLI_OK or, having printed why, CLI_REFUSED.
 */
int layers_read(unsigned char *wanted, int layers, const char *list, long *largest);

#endif /* KNA_CLI_LAYERS_H */
