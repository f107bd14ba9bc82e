// Owns the frame of a card: its title, and where the focus goes when the element that had it disappears.
import { useLayoutEffect, useRef } from 'react';
import type { FocusEvent, ReactNode } from 'react';

import { Card, CardHeader, CardTitle } from '@patternfly/react-core';

interface Props { title: string; actions?: ReactNode; children: ReactNode }

export function PageCard({ title, actions, children }: Props) {
    const { heading, watch } = useKeptFocus();
    const headerActions = actions === undefined ? undefined : { actions, hasNoOffset: true };
    return (
        <Card {...watch}>
            <CardHeader actions={headerActions}>
                <CardTitle><h2 className="pf-v6-c-card__title-text" ref={heading} tabIndex={-1}>{title}</h2></CardTitle>
            </CardHeader>
            {children}
        </Card>
    );
}

/** Focuses the heading when the focused element of the card is no longer there, for keyboards and screen readers. */
function useKeptFocus() {
    const heading = useRef<HTMLHeadingElement>(null);
    const focused = useRef<Element | null>(null);
    // React reports no blur of an element that it removes.
    const watch = {
        onFocus: (event: FocusEvent) => { focused.current = event.target; },
        onBlur: () => { focused.current = null; },
    };
    useLayoutEffect(() => {
        if (!focused.current || focused.current.isConnected) return;
        focused.current = null;
        if (document.activeElement === document.body) heading.current?.focus({ preventScroll: true });
    });
    return { heading, watch };
}
