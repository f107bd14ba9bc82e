// Owns the translations: reads po files, writes them in Cockpit's form, and collects the texts of the sources.
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import gettextParser from 'gettext-parser';
import ts from 'typescript';

export const page = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const directory = path.join(page, 'po');

/** Returns the languages that have a translation. */
export const languages = () => fs.readdirSync(directory).filter(file => file.endsWith('.po')).map(file => file.slice(0, -3));

/**
 * Returns the messages of a language: the forms of each text.
 * @returns {{ pluralForms: string, messages: { msgid: string, msgid_plural?: string, msgstr: string[] }[] }}
 */
export function read(language) {
    const { headers, translations } = gettextParser.po.parse(fs.readFileSync(path.join(directory, `${language}.po`)));
    const messages = Object.values(translations['']).filter(message => message.msgid !== '');
    return { pluralForms: headers['Plural-Forms'] ?? headers['plural-forms'], messages };
}

/** Returns a translation as a script that calls cockpit.locale(). */
export function script(language) {
    const { pluralForms, messages } = read(language);
    const rule = /plural=([n0-9 !=<>&|?:%()]+)/.exec(pluralForms)?.[1];
    if (!rule) throw new Error(`po/${language}.po has no rule of plural forms`);
    const entries = messages.map(({ msgid, msgid_plural: plural, msgstr }) =>
        `${JSON.stringify(msgid)}: ${JSON.stringify([plural ?? null, ...msgstr])}`);
    return `cockpit.locale({\n"": {"plural-forms": (n) => ${rule}, "language": "${language}", ` +
        `"language-direction": "ltr"},\n${entries.join(',\n')}\n});\n`;
}

const functions = { _: 1, N_: 1, ngettext: 2 };

/** Calls back with each text of the sources: its id, and its plural if it has one. */
export function texts() {
    const found = new Map([[label(), undefined]]);
    for (const file of fs.readdirSync(path.join(page, 'src'), { recursive: true })) {
        if (!/\.tsx?$/.test(file)) continue;
        const text = fs.readFileSync(path.join(page, 'src', file), 'utf8');
        const visit = node => {
            if (ts.isCallExpression(node) && ts.isIdentifier(node.expression) && functions[node.expression.text]) {
                const [id, plural] = node.arguments.filter(ts.isStringLiteral).map(one => one.text);
                if (id !== undefined) found.set(id, functions[node.expression.text] === 2 ? plural : undefined);
            }
            ts.forEachChild(node, visit);
        };
        visit(ts.createSourceFile(file, text, ts.ScriptTarget.Latest, true, ts.ScriptKind.TSX));
    }
    return found;
}

/** Cockpit translates the name in its menu. */
const label = () => JSON.parse(fs.readFileSync(path.join(page, 'src/manifest.json'), 'utf8')).menu.index.label;
