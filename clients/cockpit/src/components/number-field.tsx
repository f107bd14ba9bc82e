// Owns the field for a number. It keeps the text that the user types; its owner decides with numberIn() whether the text
// is a possible number. NumberInput of PatternFly makes 0 of an empty text.
import { Button, FormHelperText, HelperText, HelperTextItem, InputGroup, InputGroupItem, InputGroupText, TextInput } from '@patternfly/react-core';
import { MinusIcon, PlusIcon } from '@patternfly/react-icons';

import { numberIn } from '../model/plan';
import { _, format } from '../text';

interface Props {
    id: string; title: string; text: string; min: number; max: number; unit?: string; isDisabled?: boolean;
    /** By how much the buttons change the number. */
    step?: number;
    /** The number must be a multiple of this one. */
    multiple?: number;
    onChange: (text: string) => void;
}

export function NumberField({ id, title, text, min, max, unit, isDisabled = false, step = 1, multiple, onChange }: Props) {
    const value = numberIn(text, min, max, multiple);
    const move = (by: number) => {
        const present = numberIn(text, -Infinity, Infinity) ?? min;
        const round = by > 0 ? Math.floor : Math.ceil;
        const whole = multiple === undefined ? present : round(present / multiple) * multiple;
        onChange(String(Math.min(max, Math.max(min, whole + by))));
    };
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
                        onChange={(_event, next) => onChange(next)}
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
                        <HelperTextItem variant="error">{ruleOf(min, max, multiple)}</HelperTextItem>
                    )}
                </HelperText>
            </FormHelperText>
        </>
    );
}

/** Returns which numbers are possible. */
function ruleOf(min: number, max: number, multiple: number | undefined): string {
    if (multiple === undefined) return format(_('Enter a number from $0 to $1.'), min, max);
    if (multiple === 1) return format(_('Enter a whole number from $0 to $1.'), min, max);
    return format(_('Enter a multiple of $2 from $0 to $1.'), min, max, multiple);
}
