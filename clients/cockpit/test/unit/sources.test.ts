// Owns the tests of the sources: complete translations, advice for each error, no cycles, and a comment in each file.
import './cockpit';

import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';

import { languages, read, texts } from '../../scripts/po.js';
import { reasonOf } from '../../src/model/autoscale';
import { adviceFor, isDenied } from '../../src/model/errors';
import { planReason, planWarnings } from '../../src/model/plan';

const page = path.resolve(import.meta.dirname, '../..');
const interfaces = ['org.vcpud1.xml', 'org.vcpud1.Autoscale.xml']
    .map(file => fs.readFileSync(path.join(page, '../../dbus', file), 'utf8')).join();

const files = ['src', 'test', 'scripts']
    .flatMap(folder => fs.readdirSync(path.join(page, folder), { recursive: true, encoding: 'utf8' }).map(file => `${folder}/${file}`))
    .filter(file => /\.(ts|tsx|js|css)$/.test(file) && !file.includes('generated'));
const source = (file: string) => fs.readFileSync(path.join(page, file), 'utf8');

for (const language of languages()) {
    test(`each text has a translation: ${language}`, () => {
        const { messages } = read(language);
        const translated = messages.filter(({ msgstr }) => msgstr.every(form => form !== '')).map(({ msgid }) => msgid);
        assert.deepEqual(translated.toSorted(), [...texts().keys()].toSorted());
        for (const { msgid, msgstr } of messages) {
            const values = (text: string) => [...new Set(text.match(/\$\d/g))].toSorted();
            for (const form of msgstr) assert.deepEqual(values(form), values(msgid), msgid);
        }
    });
}

test('each error of the interface has advice', () => {
    const names = new Set([...interfaces.matchAll(/org\.vcpud1\.Error\.\w+/g)].map(([name]) => name));
    names.delete('org.vcpud1.Error.MachineExists'); // of RegisterMachine(), which the page does not call
    assert.ok(names.size > 10);
    for (const name of names) assert.ok(adviceFor(name) || isDenied(name), name);
});

test('each reason of the autoscaler has an explanation', () => {
    const description = fs.readFileSync(path.join(page, '../../doc/autoscaling.md'), 'utf8');
    const codes = [...description.matchAll(/^\| `([\w-]+)` \| (?:added|removed|none) \|/gm)].map(([, code]) => code);
    assert.ok(codes.length > 20);
    for (const code of codes) assert.ok(reasonOf({ 'reason-code': code }), code);
});

test('each code of a plan has a text', () => {
    const [description] = /The codes of warnings are these[^]*?Errors:/.exec(interfaces) ?? [''];
    const codes = [...description.matchAll(/^ +"([a-z-]+)": /gm)].map(([, code = '']) => code);
    assert.ok(codes.length > 10);
    for (const code of codes) {
        const plan = { 'reason-code': code, 'warnings': [''], 'warning-codes': [code] };
        assert.ok(planReason(plan) || planWarnings(plan)[0], code);
    }
});

test('each file says what it owns', () => {
    for (const file of files) assert.match(source(file), /^(\/\/|\/\*) (Owns|Generated)/, file);
});

test('files have no import cycles', () => {
    const imports = (file: string) => [...source(file).matchAll(/^import (?!type).*from '(\.[^']*)'/gm)]
        .map(([, name]) => path.join(path.dirname(file), name ?? ''))
        .map(name => files.find(other => [name, `${name}.ts`, `${name}.tsx`].includes(other)))
        .filter(name => name !== undefined);
    const visit = (file: string, above: string[]): void => {
        assert.ok(!above.includes(file), [...above, file].join(' -> '));
        imports(file).forEach(next => visit(next, [...above, file]));
    };
    files.forEach(file => visit(file, []));
});
