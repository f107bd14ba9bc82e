// Owns the rule that reads of the same thing do not overlap. Pure.

/**
 * Returns a function that runs one call at a time. Requests during a call lead to one further call. The promise ends with
 * the last call.
 */
export function oneAtATime(call: () => Promise<void>): () => Promise<void> {
    let isWanted = false;
    let running: Promise<void> | undefined;
    const loop = async () => {
        while (isWanted) {
            isWanted = false;
            await call();
        }
        running = undefined;
    };
    return () => {
        isWanted = true;
        running ??= loop();
        return running;
    };
}
