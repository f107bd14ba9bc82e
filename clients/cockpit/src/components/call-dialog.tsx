// Owns the frame of a dialog that makes one call: the form, the error, and the buttons. It must not know the call.
import { Button, Form, Modal, ModalBody, ModalFooter, ModalHeader, Stack } from '@patternfly/react-core';
import type { ReactNode } from 'react';

import type { Call } from '../hooks/page';
import { _ } from '../text';
import { ErrorAlert } from './parts';

interface Props { id: string; title: string; failure: string; call: Call; isValid: boolean; onClose: () => void; children: ReactNode }

/** A dialog that closes when its call succeeds. `failure` is the title of the error. */
export function CallDialog({ id, title, failure, call, isValid, onClose, children }: Props) {
    const save = async (access?: 'administrator') => { if (await call.run(access)) onClose(); };
    return (
        <Modal isOpen variant="small" onClose={onClose} aria-labelledby={`${id}-title`}>
            <ModalHeader title={title} labelId={`${id}-title`} />
            <ModalBody>
                <Stack hasGutter>
                    <Form onSubmit={event => { event.preventDefault(); void save(); }}>{children}</Form>
                    {call.error && <ErrorAlert title={failure} error={call.error} onRetry={access => void save(access)} />}
                </Stack>
            </ModalBody>
            <ModalFooter>
                <Button variant="primary" isDisabled={!isValid || call.isBusy} isLoading={call.isBusy} onClick={() => void save()}>
                    {_('Save')}
                </Button>
                <Button variant="link" onClick={onClose}>{_('Cancel')}</Button>
            </ModalFooter>
        </Modal>
    );
}
