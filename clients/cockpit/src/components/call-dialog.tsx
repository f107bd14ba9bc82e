// Owns the frame of a dialog that makes one call: the form, the error, and the buttons. It must not know the call.
import { Button, Form, Modal, ModalBody, ModalFooter, ModalHeader, Stack } from '@patternfly/react-core';
import type { ReactNode } from 'react';

import type { Access } from '../bus/client';
import { useIsReady } from '../hooks/page';
import type { Call } from '../hooks/page';
import { needsAdministrator } from '../model/permission';
import type { Permission } from '../model/permission';
import { _ } from '../text';
import { ErrorAlert } from './parts';
import { ServiceNotice } from './service-notice';

interface Props {
    id: string; title: string; call: Call; isValid: boolean; onClose: () => void; children: ReactNode;
    /** The title of the error. */
    failure: string;
    permission: Permission | undefined;
    /** The selector of the element that has the focus at first. */
    focus: string;
}

/** A dialog that closes when its call succeeds. */
export function CallDialog({ id, title, failure, focus, call, permission, isValid, onClose, children }: Props) {
    const access = needsAdministrator(permission) ? 'administrator' : 'user';
    const isReady = useIsReady();
    const canSave = isReady && isValid && !call.isBusy;
    // The result of a call must be seen.
    const close = () => { if (!call.isBusy) onClose(); };
    const save = async (as: Access) => { if (await call.run(as)) onClose(); };
    return (
        <Modal isOpen variant="small" onClose={close} aria-labelledby={`${id}-title`} elementToFocus={focus}>
            <ModalHeader title={title} labelId={`${id}-title`} />
            <ModalBody>
                <Stack hasGutter>
                    <Form onSubmit={event => { event.preventDefault(); if (canSave) void save(access); }}>{children}</Form>
                    <ServiceNotice />
                    {call.error && <ErrorAlert title={failure} error={call.error} onRetry={as => void save(as)} />}
                </Stack>
            </ModalBody>
            <ModalFooter>
                <Button variant="primary" isAriaDisabled={!canSave} isLoading={call.isBusy} onClick={() => void save(access)}>
                    {access === 'user' ? _('Save') : _('Save with administrative access')}
                </Button>
                <Button variant="link" isAriaDisabled={call.isBusy} onClick={close}>{_('Cancel')}</Button>
            </ModalFooter>
        </Modal>
    );
}
