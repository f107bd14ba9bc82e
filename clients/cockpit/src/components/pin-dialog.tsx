// Owns the dialog that pins vCPUs to host CPUs. Without vCPUs, it sets the default of the machine.
import { useState } from 'react';

import { FormGroup, FormHelperText, HelperText, HelperTextItem, TextInput } from '@patternfly/react-core';

import { useCanTune } from '../hooks/machine';
import { useCall, usePage } from '../hooks/page';
import type { MachineState } from '../model/fleet';
import { cpuListOf } from '../model/vcpus';
import { _, format, namesOf } from '../text';
import { CallDialog } from './call-dialog';

interface Props {
    machine: MachineState; vcpus: number[];
    /** The present pin, or undefined if the vCPUs have different ones. */
    current: string | undefined;
    onClose: () => void;
}

export function PinDialog({ machine, vcpus, current, onClose }: Props) {
    const { store } = usePage();
    const [input, setInput] = useState(current);
    const cpus = input ?? '';
    const list = cpus.trim() === '' ? '' : cpuListOf(cpus);
    const call = useCall(access => store.machine(machine.path, 'PinVcpus', [vcpus, list ?? '', {}], access));
    const isValid = list !== undefined;
    const help = input === undefined
        ? _('The vCPUs have different pins. Enter host CPUs for all of them.')
        : _('Numbers and ranges, such as 0-3,8. An empty field removes the pin.');
    const title = vcpus.length > 0 ? format(_('Pin $0'), namesOf(vcpus)) : _('Host CPUs of vCPUs without a pin');
    return (
        <CallDialog
            id="pin" title={title} failure={_('The pin is not changed')}
            focus="#pin-cpus" call={call} permission={useCanTune(machine, 'pin')} isValid={isValid && input !== undefined} onClose={onClose}
        >
            <FormGroup label={_('Host CPUs')} fieldId="pin-cpus">
                <TextInput
                    id="pin-cpus" value={cpus} onChange={(_event, value) => setInput(value)}
                    validated={isValid ? 'default' : 'error'} placeholder="0-3,8" aria-describedby="pin-help"
                />
                <FormHelperText>
                    <HelperText id="pin-help">
                        <HelperTextItem variant={isValid ? 'default' : 'error'}>
                            {isValid ? help : _('Enter host CPUs as numbers and ranges, such as 0-3,8.')}
                        </HelperTextItem>
                    </HelperText>
                </FormHelperText>
            </FormGroup>
        </CallDialog>
    );
}
