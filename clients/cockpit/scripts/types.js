// Owns the TypeScript types of the D-Bus interfaces: generates them from the XML files of the service, so that a
// change of an interface is an error of the type checker. It must not know what the page does with them.
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { XMLParser } from 'fast-xml-parser';

const page = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const repository = path.dirname(path.dirname(page));
const files = ['org.vcpud1.xml', 'org.vcpud1.Autoscale.xml'];
const output = path.join(page, 'src/generated/interfaces.ts');

const parser = new XMLParser({
    preserveOrder: true, ignoreAttributes: false, attributeNamePrefix: '', commentPropName: 'comment',
});

const basic = { b: 'boolean', s: 'string', o: 'string', g: 'string' };

// Returns the type of the first complete type in a D-Bus signature, and the rest of the signature. Cockpit encodes
// all numbers as JSON numbers, dictionaries as objects, structures as arrays, and variants with their type.
function type(signature) {
    const code = signature[0];
    if (code === 'v') return ['Variant', signature.slice(1)];
    if (code === 'a') return container(signature);
    if (code === '(') return list(signature, ')');
    if (basic[code]) return [basic[code], signature.slice(1)];
    if ('ynqiuxtdh'.includes(code)) return ['number', signature.slice(1)];
    throw new Error(`the signature ${signature} is not known`);
}

function container(signature) {
    if (signature[1] !== '{') {
        const [element, rest] = type(signature.slice(1));
        return [`${element}[]`, rest];
    }
    const [, afterKey] = type(signature.slice(2));
    const [value, rest] = type(afterKey);
    return [`Record<string, ${value}>`, rest.slice(1)];
}

function list(signature, end) {
    const types = [];
    let rest = signature.slice(1);
    while (rest[0] !== end) {
        const [next, after] = type(rest);
        types.push(next);
        rest = after;
    }
    return [`[${types.join(', ')}]`, rest.slice(1)];
}

const typeOf = signature => type(signature)[0];

// Returns the type of a value in a dictionary of options or results, from the words in the comment.
function typeOfKey(words) {
    return words === 'any integer type' ? 'number' : typeOf(words.split(' or ')[0]);
}

// The keys of dictionaries are in the comment of their member: paragraphs such as `"id" (u): The number of the vCPU.`
function keys(comment) {
    const found = new Map();
    const words = String.raw`(?: \(((?:[^()]|\([^()]*\))*)\))?`;
    const key = String.raw`"([a-z-]+)"${words}`;
    const paragraph = new RegExp(String.raw`^\s*((?:${key}(?:, )?)+): `, 'gm');
    for (const [, names] of comment.matchAll(paragraph)) {
        // A key has a type, or shares the one that follows it.
        let last;
        for (const [, name, own] of [...names.matchAll(new RegExp(key, 'g'))].reverse()) {
            last = own ?? last;
            if (last) found.set(name, typeOfKey(last));
        }
    }
    return [...found];
}

const children = (node, tag) => node.filter(child => child[tag]);
const attributes = node => node[':@'] ?? {};
const text = node => node.comment.map(part => part['#text']).join('');

// Returns the members of an interface with the comments before them.
function members(nodes) {
    let comment = '';
    return nodes.flatMap(node => {
        if (node.comment) comment = text(node);
        const tag = ['method', 'signal', 'property'].find(name => node[name]);
        if (!tag) return [];
        const { name, type: signature } = attributes(node);
        const args = children(node[tag], 'arg').map(attributes);
        return [{ tag, name, signature, args, keys: keys(comment) }];
    });
}

const argument = arg => `${arg.name}: ${typeOf(arg.type)}`;
const block = lines => (lines.length ? `{\n${lines.join('\n')}\n    }` : 'object');

function method(member) {
    const given = member.args.filter(arg => arg.direction === 'in');
    const returned = member.args.filter(arg => arg.direction === 'out');
    return `        ${member.name}: { in: [${given.map(argument).join(', ')}]; out: [${returned.map(argument).join(', ')}] };`;
}

function dictionary(member) {
    const fields = member.keys.map(([key, type]) => `'${key}'?: ${type}`);
    return `        ${member.name}: { ${fields.join('; ')} };`;
}

// Writes the types of an interface, and the signatures that calls need at run time.
function describe(name, nodes) {
    const all = members(nodes);
    const of = tag => all.filter(member => member.tag === tag);
    const short = name.split('.').pop();
    const signature = member => member.args.filter(arg => arg.direction === 'in').map(arg => arg.type).join('');
    return `export interface ${short} {
    methods: ${block(of('method').map(method))};
    signals: ${block(of('signal').map(one => `        ${one.name}: [${one.args.map(argument).join(', ')}];`))};
    properties: ${block(of('property').map(one => `        ${one.name}: ${typeOf(one.signature)};`))};
    /** The keys of the dictionaries that a member takes, returns or emits. */
    keys: ${block(all.filter(one => one.keys.length).map(dictionary))};
}

export const ${short}: Description<${short}> = {
    name: '${name}',
    signatures: ${JSON.stringify(Object.fromEntries(of('method').map(one => [one.name, signature(one)])))},
};
`;
}

const header = `// Generated by scripts/types.js from ${files.map(file => `dbus/${file}`).join(' and ')}. Do not edit.

/** A variant, as Cockpit encodes it. */
export interface Variant { t: string; v: unknown }

export interface AnyInterface { methods: object; signals: object; properties: object; keys: object }

/** What a call needs at run time: the name of the interface, and the signature of each method. */
export interface Description<I extends AnyInterface> {
    name: string;
    signatures: Record<keyof I['methods'], string>;
}
`;

const interfaces = files.flatMap(file => {
    const root = parser.parse(fs.readFileSync(path.join(repository, 'dbus', file), 'utf8'));
    const node = children(root, 'node')[0].node;
    return children(node, 'interface').map(child => describe(attributes(child).name, child.interface));
});
fs.mkdirSync(path.dirname(output), { recursive: true });
fs.writeFileSync(output, [header, ...interfaces].join('\n'));
