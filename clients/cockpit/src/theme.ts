// Owns dark mode: the choice in Cockpit's menu, or that of the browser. Cockpit keeps its choice as "shell:style".
const CLASS = 'pf-v6-theme-dark';
const KEY = 'shell:style';

function apply(choice: string | null): void {
    const browserIsDark = window.matchMedia('(prefers-color-scheme: dark)').matches;
    const isDark = choice === 'dark' || (choice !== 'light' && browserIsDark);
    document.documentElement.classList.toggle(CLASS, isDark);
}

const fromStorage = (): void => apply(localStorage.getItem(KEY));

export function followTheme(): void {
    window.addEventListener('storage', event => { if (event.key === KEY) fromStorage(); });
    window.addEventListener('cockpit-style', event => apply((event as CustomEvent<{ style: string }>).detail.style));
    window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', fromStorage);
    fromStorage();
}
