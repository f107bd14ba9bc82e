// Owns the rules for the sources: those of TypeScript and React, and the lengths of files and functions.
import reactHooks from 'eslint-plugin-react-hooks';
import ts from 'typescript-eslint';

export default ts.config(
    { ignores: ['dist', 'node_modules', 'src/generated'] },
    ...ts.configs.recommended,
    {
        files: ['src/**', 'test/**'],
        extends: [...ts.configs.recommendedTypeCheckedOnly],
        languageOptions: { parserOptions: { project: './tsconfig.json', tsconfigRootDir: import.meta.dirname } },
        rules: {
            // The test runner waits for the tests itself.
            '@typescript-eslint/no-floating-promises': ['error', {
                allowForKnownSafeCalls: [{ from: 'package', name: 'test', package: 'node:test' }],
            }],
        },
    },
    { files: ['src/**/*.ts', 'src/**/*.tsx'], ...reactHooks.configs.flat.recommended },
    {
        rules: {
            'eqeqeq': 'error',
            'max-lines': ['error', 400],
            'max-lines-per-function': ['error', 50],
            'semi': ['error', 'always'],
        },
    },
    { files: ['test/**'], rules: { 'max-lines-per-function': 'off' } },
);
