// Owns the field for a number. It keeps the text that the user types; its owner decides with numberIn() whether the text
// is a possible number. NumberInput of PatternFly makes 0 of an empty text.
import { Button, FormHelperText, HelperText, HelperTextItem, InputGroup, InputGroupItem, InputGroupText, TextInput } from '@patternfly/react-core';
import { MinusIcon, PlusIcon } from '@patternfly/react-icons';

import { numberIn } from '../model/plan';
import { _, format } from '../text';

interface Props {
    id: string; title: string; text: string; min: number; max: number; step?: number; unit?: string;
    isDisabled?: boolean; onChange: (text: string) => void; onLeave?: () => void;
}

export function NumberField({ id, title, text, min, max, step = 1, unit, isDisabled = false, onChange, onLeave }: Props) {
    const value = numberIn(text, min, max);
    const move = (by: number) => onChange(String(Math.min(max, Math.max(min, (value ?? min) + by))));
    return (
        <>
            <InputGroup className="vcpud-number-field">
                <InputGroupItem>
                    <Button
                        variant="control" icon={<MinusIcon />} aria-label={format(_('Decrease: $0'), title)}
                        isAriaDisabled={isDisabled || value === min} onClick={() => move(-step)}
                    />
                </InputGroupItem>
                <InputGroupItem>
                    <TextInput
                        id={id} type="number" min={min} max={max} step={step} aria-label={title} aria-describedby={`${id}-range`}
                        value={text} validated={value === undefined ? 'error' : 'default'} isDisabled={isDisabled}
                        onChange={(_event, next) => onChange(next)} onBlur={onLeave}
                        onKeyDown={event => { if (event.key === 'Enter') onLeave?.(); }}
                    />
                </InputGroupItem>
                <InputGroupItem>
                    <Button
                        variant="control" icon={<PlusIcon />} aria-label={format(_('Increase: $0'), title)}
                        isAriaDisabled={isDisabled || value === max} onClick={() => move(step)}
                    />
                </InputGroupItem>
                {unit && <InputGroupItem className="vcpud-unit"><InputGroupText isPlain>{unit}</InputGroupText></InputGroupItem>}
            </InputGroup>
            <FormHelperText>
                <HelperText id={`${id}-range`} isLiveRegion>
                    {value === undefined && (
                        <HelperTextItem variant="error">{format(_('Enter a number from $0 to $1.'), min, max)}</HelperTextItem>
                    )}
                </HelperText>
            </FormHelperText>
        </>
    );
}
