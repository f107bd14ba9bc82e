// Owns the parts of Cockpit's JavaScript that pure code uses, in English.
const english = {
    gettext: (text: string) => text,
    ngettext: (one: string, many: string, count: number) => (count === 1 ? one : many),
    format: (text: string, ...values: (string | number)[]) =>
        text.replaceAll(/\$(\d)/g, (_match, index: string) => String(values[Number(index)])),
};
Object.assign(globalThis, { cockpit: english });
