// Owns the build: bundles the page into dist/, with its translations, and without anything from the network.
import fs from 'node:fs';
import path from 'node:path';
import zlib from 'node:zlib';

import esbuild from 'esbuild';

import { languages, page, script } from './po.js';

const output = path.join(page, 'dist');

// The style sheet of PatternFly names fonts and pictures. Cockpit serves the fonts, and the page has no such pictures.
function baseStyles({ path: file }) {
    const contents = fs.readFileSync(file, 'utf8')
        .replaceAll(/@font-face\s*\{[^}]*\}/g, '')
        .replaceAll(/url\(["']?\.\/assets\/images\/[^)]*\)/g, 'none');
    return { contents, loader: 'css' };
}

// esbuild bundles the styles of all components of PatternFly. With `used`, others are empty.
const patternfly = used => ({
    name: 'patternfly',
    setup(build) {
        build.onLoad({ filter: /react-core\/dist\/styles\/base\.css$/ }, baseStyles);
        if (!used) return;
        build.onLoad({ filter: /react-styles\/css\/.*\.css$/ }, ({ path: file }) => {
            const module = path.relative(page, file).replace(/\.css$/, '.mjs');
            return used.has(module) ? undefined : { contents: '', loader: 'css' };
        });
    },
});

const options = {
    absWorkingDir: page,
    entryPoints: ['src/index.tsx'],
    outdir: output,
    bundle: true,
    minify: true,
    jsx: 'automatic',
    target: ['es2022'],
    legalComments: 'none',
    external: ['../../static/*'],
    define: { 'process.env.NODE_ENV': '"production"' },
    metafile: true,
};

/** Returns the modules that are in a bundle. */
function modulesIn({ outputs }) {
    const inputs = Object.values(outputs).flatMap(({ inputs }) => Object.entries(inputs));
    return new Set(inputs.filter(([, { bytesInOutput }]) => bytesInOutput > 0).map(([file]) => file));
}

/** Returns the names, versions and licences of the libraries in a bundle. */
function licences(metafile) {
    const names = new Set([...modulesIn(metafile)].map(file => /^node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(file)?.[1]));
    return [...names].filter(Boolean).toSorted().map(name => {
        const directory = path.join(page, 'node_modules', name);
        const { version, license } = JSON.parse(fs.readFileSync(path.join(directory, 'package.json'), 'utf8'));
        // debian/copyright.in names these licences.
        if (!['MIT', '0BSD'].includes(license)) throw new Error(`${name} has another licence: ${license}`);
        const file = fs.readdirSync(directory).find(one => /^(licen[cs]e|copying)/i.test(one));
        return `${name} ${version}: ${license}\n\n${file ? fs.readFileSync(path.join(directory, file), 'utf8') : ''}`;
    }).join('\n---\n\n');
}

fs.rmSync(output, { recursive: true, force: true });
const draft = await esbuild.build({ ...options, write: false, plugins: [patternfly()] });
const { metafile } = await esbuild.build({ ...options, plugins: [patternfly(modulesIn(draft.metafile))] });
for (const file of ['index.html', 'manifest.json']) fs.copyFileSync(path.join(page, 'src', file), path.join(output, file));
for (const language of languages()) fs.writeFileSync(path.join(output, `po.${language}.js`), script(language));
fs.writeFileSync(path.join(output, 'LICENSES.txt'), licences(metafile));
for (const [file, { bytes }] of Object.entries(metafile.outputs)) console.log(`${file}: ${Math.round(bytes / 1024)} KiB`);

// Cockpit serves compressed files in the place of others.
for (const name of fs.readdirSync(output).filter(file => /\.(js|css)$/.test(file))) {
    const file = path.join(output, name);
    fs.writeFileSync(`${file}.gz`, zlib.gzipSync(fs.readFileSync(file), { level: 9 }));
    fs.rmSync(file);
}
